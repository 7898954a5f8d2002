"""`python -m stages.train` with a checkpoint after every epoch, for tests that kill it; argv is that of the stage."""

import runpy

from pipeline.training import loop

loop.CHECKPOINT_SECONDS = 0.0
runpy.run_module("stages.train", run_name="__main__")
