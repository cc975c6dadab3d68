"""tbd: was this benchmark in the data a reasoning model was distilled on?"""

import gc

__version__ = "0.2.0"
# the large libraries make a million objects while they are imported; with Python's 700, looking for cycles among them
# takes a sixth of the time, and every stage is a process
gc.set_threshold(10_000)
