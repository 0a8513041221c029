"""The training set, retrieved from the feature store by a point-in-time join."""

import hashlib
import shutil
from pathlib import Path

import pyarrow.parquet as pq

from salescast import schema
from salescast.config import settings
from salescast.feature_store.repo import feature_digests, open_store, store_errors
from salescast.features.training_set import DONE, is_complete, write_training_set
from salescast.runtime import checksums, code_digest
from salescast.runtime.atomic_files import replace_dir
from salescast.workdir import Workdir


def training_digest(workdir: Workdir, service: str) -> str:
    """Digest of what a training set depends on: the feature files, the declarations, the service and the code."""
    digest = hashlib.sha256(service.encode())
    digest.update((settings().feature_repo / "features.py").read_bytes())
    digest.update(bytes.fromhex(code_digest.digest(code_digest.RETRIEVAL)))
    for file_digest in feature_digests(workdir).values():
        digest.update(bytes.fromhex(file_digest))
    return digest.hexdigest()[:16]


def retrieve(workdir: Workdir, service: str, yaml: str | None = None) -> Path:
    """Retrieve every series and week of `service` by a point-in-time join into `training/<digest>/part-*.parquet`.

    Rows are sorted by keys and time: every week of every series and the upcoming week, whose label is null. An existing
    set is returned if it is complete and unchanged. `yaml`: as for `open_store`. Raises UserError for feature files
    that cannot be used.
    """
    target = workdir.training / training_digest(workdir, service)
    if is_complete(target):
        return target
    entities = workdir.data / f"{schema.SALES_VIEW}.parquet"
    frame = pq.read_table(entities, columns=[*schema.KEYS, schema.TIMESTAMP])
    with store_errors(), replace_dir(target) as temporary:
        store = open_store(workdir, yaml)
        job = store.get_historical_features(entity_df=frame, features=store.get_feature_service(service))
        if store.config.offline_store.engine == "ray":
            # The workers write the parts in order, so that no process holds the complete set.
            parts = [Path(part) for part in job.to_remote_storage()]
            try:
                for number, part in enumerate(parts):
                    shutil.move(part, temporary / f"part-{number:05}.parquet")
            finally:
                shutil.rmtree(parts[0].parent)
        else:
            write_training_set(job.to_arrow(), temporary / "part-00000.parquet")
        checksums.write(sorted(temporary.glob("part-*.parquet")), temporary / DONE)
    return target
