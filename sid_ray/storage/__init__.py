"""Files by name on a disk or in S3: stores, leases, local copies, lines of text."""
