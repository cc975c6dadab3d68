"""When things run: Prefect flows over the stages that DVC names. What is done is in `tbd`."""

from tbd import environment

environment.prepare()
