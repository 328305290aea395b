"""`python -m blpseg`."""

from blpseg.cli import main

raise SystemExit(main())
