"""tbd: was this benchmark in the data a reasoning model was distilled on?"""

__version__ = "0.2.0"
