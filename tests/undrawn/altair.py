"""Stands before altair on the path of grids whose pictures no test looks at: they take longer than such grids train."""

raise ModuleNotFoundError("left out of this test", name="altair")
