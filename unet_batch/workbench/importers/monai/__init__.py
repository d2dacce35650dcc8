"""Reads bundles of MONAI: a contract, a network and settings of the job, without running code of the bundle."""
