"""Google Cloud Storage: the contract of stores against fake-gcs-server, and what only this store does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from contracts.store_suite import StoreSuite

from unet_batch.archive.storage import Storage

pytestmark = pytest.mark.gcs


class TestGcsStore(StoreSuite):
    """A server that speaks the JSON API."""

    @pytest.fixture
    def storage(self, gcs_options: dict) -> Storage:
        return Storage(gcs_options, threads=4, first_wait_s=0.01)

    @pytest.fixture
    def root(self, new_gcs_bucket: Callable[[], str]) -> str:
        return f"{new_gcs_bucket()}/prefix"
