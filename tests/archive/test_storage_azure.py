"""Azure Blob Storage: the contract of stores against Azurite, and what only this store does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from contracts.store_suite import StoreSuite

from unet_batch.archive.storage import Storage

pytestmark = pytest.mark.azure


class TestAzureStore(StoreSuite):
    """A server that speaks the Blob service's REST API."""

    @pytest.fixture
    def storage(self, azure_options: dict) -> Storage:
        return Storage(azure_options, threads=4, first_wait_s=0.01)

    @pytest.fixture
    def root(self, new_container: Callable[[], str]) -> str:
        return f"{new_container()}/prefix"
