"""`python -m unet_batch` is the command `unet-batch`."""

from unet_batch.cli.main import main

main()
