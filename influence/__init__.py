"""The front door: config, pipeline, audit, verification, report and command line."""
