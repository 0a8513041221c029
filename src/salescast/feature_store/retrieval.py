"""The feature store's edge: apply, materialize, and the training set by a point-in-time join."""

import hashlib
import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from salescast import schema
from salescast.runtime import checksums, code_digest
from salescast.runtime.atomic_files import replace_dir
from salescast.workdir import Workdir

if TYPE_CHECKING:
    pass
from salescast.feature_store.repo import (
    feature_digests,
    open_store,
    store_errors,
)
from salescast.features.training_set import DONE, is_complete, write_training_set

logger = logging.getLogger(__name__)


def training_digest(workdir: Workdir, service: str) -> str:
    """What a training set was made from: the feature files' content, the service and the code of the retrieval."""
    digest = hashlib.sha256(service.encode())
    digest.update(bytes.fromhex(code_digest.digest(code_digest.RETRIEVAL)))
    for found in feature_digests(workdir).values():
        digest.update(bytes.fromhex(found))
    return digest.hexdigest()[:16]


def retrieve(workdir: Workdir, service: str, yaml: str | None = None) -> Path:
    """Retrieve every series and week of `service` by a point-in-time join into `training/<digest>/part-*.parquet`.

    Rows are sorted by keys and time and hold the whole weekly grid with the upcoming week (label null). A set that is
    there already, whole and unchanged, is returned as it is. `yaml`: as for `open_store`. Raises UserError for feature
    files that cannot be used.
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
            # The workers write the parts, in order; the whole set is never in one process.
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
