"""Files: writing them safely, and the formats of other programs. Knows no model."""
