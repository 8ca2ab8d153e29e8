"""The nipype workflows.

Thin nodes around the steps of the pipeline, and the engines that run them.
"""

import configparser
import glob
import os

# nipype keeps paths in its configuration, which would interpret every "%", even in HOME.
_interpolating = configparser.ConfigParser
configparser.ConfigParser = configparser.RawConfigParser  # type: ignore[assignment,misc]
try:
    import nipype.pipeline.engine.nodes
    import nipype.pipeline.engine.utils
    import nipype.pipeline.plugins.base
finally:
    configparser.ConfigParser = _interpolating  # type: ignore[misc]
# nipype may have been imported before.
nipype.config._config._interpolation = configparser.Interpolation()


def _glob_in_folder(pattern: str) -> list[str]:
    """Find files by a pattern of their names, in a folder that is taken literally.

    nipype looks so for the results of nodes. Brackets in the path of the work folder would hide
    them, and nodes would fail, or run again although they are done.
    """
    folder, name = os.path.split(pattern)
    return glob.glob(os.path.join(glob.escape(folder), name))


for _module in (nipype.pipeline.engine.nodes, nipype.pipeline.engine.utils):
    _module.glob = _glob_in_folder
nipype.pipeline.plugins.base.glob = _glob_in_folder
