"""tbd: was this benchmark in the data a reasoning model was distilled on?"""

import atexit
import gc

__version__ = "0.3.0.dev0"
# the large libraries make a million objects while they are imported: with Python's 700, looking for cycles among them
# takes a sixth of the time, and a second more where a process ends; every stage is one
gc.set_threshold(100_000)
atexit.register(gc.freeze)  # the interpreter looks once more before it ends, for what ends with it anyway
