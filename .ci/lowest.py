"""Print the lower bound of every dependency as a pin; torch is left to constraints.txt, for its build."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
groups = [project["dependencies"], *project["optional-dependencies"].values()]
for requirement in sorted({line for group in groups for line in group}):
    bound = re.match(r"([\w-]+)>=([\w.]+)", requirement)
    if bound and bound[1] != "torch":
        print(f"{bound[1]}=={bound[2]}")
