"""When things run: Prefect flows over the stages that DVC names. What is done is in `tbd`."""

import logging

from tbd import environment, foreign

environment.prepare()
logging.setLogRecordFactory(foreign.Line)
