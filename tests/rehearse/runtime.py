"""Run pods as processes of this machine. Each has a network namespace with an address, its volumes as mounted by the
manifest, a root file system that is read-only if the manifest says so, and a user id that no image knows.

Runs as root inside namespaces that `rehearse.py` creates; the processes end with it.
"""

import os
import shlex
import signal
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "manifests"))
from cluster import NAMESPACE, ROOT, Pod

USER = 1000650000  # as OpenShift assigns it: unknown to the image, in group 0, with the fsGroup of the namespace
NODE = "10.88.0.1"


def output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@dataclass
class Process:
    """A running container."""

    name: str
    start: Callable[[], subprocess.Popen[bytes]]
    log: Path
    network: str
    address: str
    spec: Mapping[str, Any]
    restarts: int = 1  # the kubelet restarts more often

    def __post_init__(self) -> None:
        self.popen = self.start()

    def tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-40:])

    def finished(self) -> None:
        """Wait until it has ended. Raises SystemExit if it failed."""
        if code := self.popen.wait():
            raise SystemExit(f"{self.name} ended with {code}\n{self.tail()}")

    def probe(self, kind: str) -> str:
        """Run one of its probes as the kubelet does; returns why it failed, '' if it passed."""
        probe = self.spec[kind]
        seconds = probe.get("timeoutSeconds", 1)
        if action := probe.get("exec"):
            inside = ["nsenter", f"--target={self.popen.pid}", "--mount", "--net", "--root", "--wd", *action["command"]]
            try:
                done = subprocess.run(inside, capture_output=True, text=True, timeout=seconds, check=False)
            except subprocess.TimeoutExpired:
                return f"no answer in {seconds} s"
            return "" if done.returncode == 0 else done.stdout + done.stderr
        get = probe["httpGet"]
        ports = {port.get("name"): port["containerPort"] for port in self.spec.get("ports", [])}
        scheme = get.get("scheme", "HTTP").lower()
        url = f"{scheme}://{self.address}:{ports.get(get['port'], get['port'])}{get['path']}"
        unverified = ssl._create_unverified_context()  # the kubelet does not verify either
        try:
            urllib.request.urlopen(url, timeout=seconds, context=unverified if scheme == "https" else None).close()
        except (urllib.error.URLError, OSError) as error:
            return str(error)
        return ""

    def ready(self) -> None:
        """Wait until its startup, readiness and liveness probes pass.

        A container that ends or does not start in the time of its startup probe is restarted once.
        """
        startup = self.spec.get("startupProbe", {"periodSeconds": 5, "failureThreshold": 360})
        until = time.monotonic() + startup["periodSeconds"] * startup["failureThreshold"]
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            while kind in self.spec and (reason := self.probe(kind)):
                code = self.popen.poll()
                if code is not None or time.monotonic() > until:
                    failure = f"ended with {code}" if code is not None else f"{kind} fails: {reason}"
                    return self._again(failure)
                time.sleep(0.5)
        return None

    def _again(self, failure: str) -> None:
        if not self.restarts:
            raise SystemExit(f"{self.name}: {failure}\n{self.tail()}")
        sys.stdout.write(f"          {self.name}: {failure}; restarting it\n{self.tail()}\n")
        self.restarts -= 1
        for pid in output("ip", "netns", "pids", self.network).split():  # Ray's processes are in other sessions
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        self.popen.wait()
        self.popen = self.start()
        self.ready()


@dataclass
class Cluster:
    """The node on which the pods run."""

    folder: Path
    secrets: dict[str, dict[str, str]]  # filled by the Job
    configs: Mapping[str, Mapping[str, str]]
    addresses: dict[str, str] = field(default_factory=dict)  # pod -> address
    hosts: dict[str, str] = field(default_factory=dict)  # name -> address
    processes: list[Process] = field(default_factory=list)

    def __post_init__(self) -> None:
        output("mount", "-t", "tmpfs", "none", "/run")
        Path("/run/netns").mkdir()
        output("ip", "link", "set", "lo", "up")
        output("ip", "link", "add", "pods", "type", "bridge")
        output("ip", "address", "add", f"{NODE}/24", "dev", "pods")
        output("ip", "link", "set", "pods", "up")
        self.image = self._image()

    def _image(self) -> Path:
        """The files that Containerfile adds to the image, as a layer above this machine's files."""
        image = self.folder / "image"
        for path in (Path(sys.prefix), Path(sys.base_prefix).resolve(), ROOT):
            for parent in reversed((image / path.relative_to("/")).parents):
                if parent.is_relative_to(image):
                    parent.mkdir(exist_ok=True, mode=0o755)  # root's home is closed to other users
        (image / "opt/salescast/manifests").mkdir(parents=True)
        (image / "opt/venv").symlink_to(sys.prefix)
        (image / "opt/salescast/feature_repo").symlink_to(ROOT / "feature_repo")
        (image / "opt/salescast/manifests/scripts").symlink_to(ROOT / "manifests/scripts")
        (image / "etc/profile.d").mkdir(parents=True)
        (image / "etc/profile.d/salescast.sh").write_text("export PATH=/opt/venv/bin:$PATH\n")
        return image

    def address(self, pod: str, *names: str) -> str:
        """Give a pod an address and host names."""
        if pod not in self.addresses:
            self.addresses[pod] = f"10.88.0.{len(self.addresses) + 2}"
        for name in names:
            self.hosts[name] = self.addresses[pod]
        return self.addresses[pod]

    def service(self, name: str, pod: str) -> None:
        suffixes = ("", f".{NAMESPACE}", f".{NAMESPACE}.svc", f".{NAMESPACE}.svc.cluster.local")
        self.address(pod, *(name + suffix for suffix in suffixes))

    def start(self, pod: Pod, name: str | None = None, extra: Mapping[str, str] | None = None) -> list[Process]:
        """Run a pod's init containers one after the other, then start its containers."""
        name = name or pod.name
        network = f"pod-{name}"[:60]
        if not Path("/run/netns", network).exists():
            self._network(network, name)
        volumes = self.folder / "volumes" / f"{name}-{len(self.processes)}"
        for volume in pod.spec.get("volumes", []):
            self._volume(volume, volumes / volume["name"])
        for container in pod.spec.get("initContainers", []):
            self._complete(container, pod, name, network, volumes, extra or {})
        if pod.kind == "Job":
            return [self._complete(item, pod, name, network, volumes, extra or {}) for item in pod.spec["containers"]]
        return [self._container(item, name, network, volumes, extra or {}) for item in pod.spec["containers"]]

    def _complete(
        self, spec: Mapping[str, Any], pod: Pod, name: str, network: str, volumes: Path, extra: Mapping[str, str]
    ) -> Process:
        """Run a container to its end; restart it after a failure if the pod says so."""
        for _ in range(2 if pod.spec.get("restartPolicy") == "OnFailure" else 0):
            process = self._container(spec, name, network, volumes, extra)
            if process.popen.wait() == 0:
                return process
            sys.stdout.write(f"          {process.name} failed, restarting it\n{process.tail()}\n")
        process = self._container(spec, name, network, volumes, extra)
        process.finished()
        return process

    def _network(self, network: str, name: str) -> None:
        link = f"veth{len(self.addresses)}-{len(list(Path('/run/netns').iterdir()))}"
        output("ip", "netns", "add", network)
        output("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", network)
        output("ip", "link", "set", link, "master", "pods", "up")
        output("ip", "-n", network, "address", "add", f"{self.address(name)}/24", "dev", "eth0")
        output("ip", "-n", network, "link", "set", "eth0", "up")
        output("ip", "-n", network, "link", "set", "lo", "up")

    def _volume(self, volume: Mapping[str, Any], folder: Path) -> None:
        if claim := volume.get("persistentVolumeClaim"):
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.symlink_to(self.claim(claim["claimName"]))
            return
        folder.mkdir(parents=True)
        os.chown(folder, 0, USER)
        folder.chmod(0o2775)
        if secret := volume.get("secret"):
            for item in secret["items"]:
                self._file(folder / item["path"], self.secrets[secret["secretName"]][item["key"]], secret)
        elif config := volume.get("configMap"):
            for key, text in self.configs[config["name"]].items():
                self._file(folder / key, text, config)

    def _file(self, path: Path, text: str, source: Mapping[str, Any]) -> None:
        path.write_text(text)
        os.chown(path, 0, USER)
        path.chmod(source.get("defaultMode", 0o644) | 0o040)  # fsGroup may read

    def claim(self, name: str) -> Path:
        folder = self.folder / "claims" / name
        if not folder.exists():
            folder.mkdir(parents=True)
            os.chown(folder, 0, USER)
            folder.chmod(0o2775)
        return folder

    def _environment(self, container: Mapping[str, Any], pod: str) -> dict[str, str]:
        values = {"PATH": "/opt/venv/bin:/usr/local/bin:/usr/bin:/bin", "HOME": "/tmp", "USER": "salescast"}
        values |= {"PYTHONUNBUFFERED": "1", "SALESCAST_FEATURE_REPO": "/opt/salescast/feature_repo"}
        values |= {"KUBERNETES_SERVICE_HOST": NODE, "KUBERNETES_SERVICE_PORT": "6443"}
        for source in container.get("envFrom", []):
            values |= self.configs[source["configMapRef"]["name"]]
        for entry in container.get("env", []):
            match entry.get("valueFrom"):
                case None:
                    value = entry["value"]
                case {"secretKeyRef": {"name": name, "key": key}}:
                    value = self.secrets[name][key]
                case {"configMapKeyRef": {"name": name, "key": key}}:
                    value = self.configs[name][key]
                case {"fieldRef": {"fieldPath": path}}:
                    value = {"metadata.namespace": NAMESPACE, "status.podIP": self.addresses[pod]}[path]
            values[entry["name"]] = value
        return values

    def _container(
        self, spec: Mapping[str, Any], pod: str, network: str, volumes: Path, extra: Mapping[str, str]
    ) -> Process:
        name = f"{pod}/{spec['name']}"
        own = self.folder / "containers" / f"{len(self.processes):03}-{name.replace('/', '-')}"
        log = own / "log"
        (own / "root").mkdir(parents=True)
        (own / "layer/etc").mkdir(parents=True)
        (own / "work").mkdir()
        names = {"localhost": "127.0.0.1", pod: self.addresses[pod], **self.hosts}
        (own / "layer/etc/hosts").write_text("".join(f"{address} {host}\n" for host, address in names.items()))
        if spec.get("named_user"):  # images whose entry point adds their user to /etc/passwd
            (own / "layer/etc/passwd").write_text(f"postgres:x:{USER}:0::/tmp:/bin/bash\n")
        script = "; ".join(["set -e", *self._mounts(spec, own, volumes), f"hostname {pod}"])
        command = [*spec["command"], *spec.get("args", [])]
        become = f"setpriv --reuid={USER} --regid=0 --groups={USER} --no-new-privs --inh-caps=-all --bounding-set=-all"
        script += f"; cd /; exec /usr/sbin/chroot {own / 'root'} {become} {shlex.join(command)}"
        inside = ["ip", "netns", "exec", network, "unshare", "--mount", "--uts", "/bin/bash", "-c", script]
        environment = self._environment(spec, pod) | extra

        def start() -> subprocess.Popen[bytes]:
            with log.open("ab") as file:
                return subprocess.Popen(
                    inside,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )

        process = Process(name, start, log, network, self.addresses[pod], spec)
        self.processes.append(process)
        return process

    def _mounts(self, spec: Mapping[str, Any], own: Path, volumes: Path) -> Iterator[str]:
        root = own / "root"
        mounts = {mount["mountPath"]: mount for mount in spec.get("volumeMounts", [])}
        for path in mounts:
            (own / "layer" / path.lstrip("/")).mkdir(parents=True, exist_ok=True)
        layers = f"lowerdir={self.image}:/,upperdir={own / 'layer'},workdir={own / 'work'}"
        yield f"mount -t overlay overlay -o {layers} {root}"
        yield f"mount --rbind /proc {root}/proc"
        yield f"mount --rbind /dev {root}/dev"
        yield f"mount -t tmpfs -o mode=1777,size=2g none {root}/dev/shm"
        for path, mount in mounts.items():
            source = (volumes / mount["name"]).resolve() / mount.get("subPath", "")
            if path == "/dev/shm":
                continue
            yield f"mount --bind {source} {root}{path}"
            if mount.get("readOnly"):
                yield f"mount -o remount,bind,ro {root}{path}"
        if spec.get("securityContext", {}).get("readOnlyRootFilesystem"):
            yield f"mount -o remount,ro {root}"


def new_folder() -> Path:
    """A folder on a new tmpfs: an overlay may not be inside its own lower layer."""
    folder = Path(tempfile.mkdtemp(prefix="salescast-rehearsal-"))
    output("mount", "-t", "tmpfs", "-o", "mode=755", "none", str(folder))
    return folder
