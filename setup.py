"""Which folders are installed under which package; everything else is in pyproject.toml.

`data_prep/` and `launch/` are top-level folders of a checkout and subpackages of an installed sidrec, so that no
top-level module called `launch` lands in site-packages.
"""

from setuptools import find_packages, setup

FOLDERS = {"sidrec.data_prep": "data_prep", "sidrec.launch": "launch"}

setup(packages=[*find_packages(include=["sidrec", "sidrec.*"]), *FOLDERS], package_dir=FOLDERS)
