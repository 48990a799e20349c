"""Print the lower bound of every dependency as a pin, all but the tools and torch, whose build constraints.txt pins."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
extras = project["optional-dependencies"]
groups = [project["dependencies"], *(extras[name] for name in extras if name != "dev")]
for requirement in sorted({line for group in groups for line in group}):
    bound = re.match(r"([\w-]+)>=([\w.]+)", requirement)
    if bound and bound[1] != "torch":
        print(f"{bound[1]}=={bound[2]}")
