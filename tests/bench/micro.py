# SPDX-License-Identifier: Apache-2.0
"""What is measured inside the package, with no run: prints one JSON document.

A program of its own, so that another commit's is run by that commit's interpreter on its code.
"""

from __future__ import annotations

import json

from tests.bench.bench_iommu import measure_comparison
from tests.bench.digests import measure_digests


def main() -> None:
    digests = measure_digests()
    document = {
        "comparison_s": measure_comparison(),
        "digests_plain_bytes_per_s": digests.plain_bytes_per_s,
        "digests_paged_bytes_per_s": digests.paged_bytes_per_s,
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
