"""Records what nnU-Net itself predicts for the folder and the pictures of `nnunet_folder`: `recorded_nnunet.npz`.

nnU-Net is no package of the test environment, because it brings some forty others with it. Run this where nnunetv2
2.8.1 is installed: `python tests/workbench/importers/record_nnunet.py`. Each picture has two label maps: nnU-Net's as
it is, which adds tiles up in float16, and nnU-Net's with the sums in float32 (`NAME_float32`).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from nnunet_folder import write_folder, write_pictures
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

OUT = Path(__file__).with_name("recorded_nnunet.npz")


def main() -> None:
    """Predict each picture with nnU-Net's defaults on the CPU, and keep the label maps."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_folder(Path(scratch) / "nnUNetTrainer__nnUNetPlans__2d")
        paths = write_pictures(Path(scratch) / "pictures")
        predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False)
        predictor.initialize_from_trained_model_folder(str(folder), use_folds=None)
        maps = {}
        for path in paths:
            for name, sums in ((path.stem, torch.float16), (f"{path.stem}_float32", torch.float32)):
                with patch.object(torch, "half", sums):
                    [found] = predictor.predict_from_files_sequential([[str(path)]], None, save_probabilities=False)
                maps[name] = np.squeeze(found).astype(np.uint8)
                print(name, maps[name].shape, np.bincount(maps[name].ravel(), minlength=3))
    np.savez_compressed(OUT, **maps)


if __name__ == "__main__":
    main()
