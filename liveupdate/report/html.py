# SPDX-License-Identifier: Apache-2.0
"""One HTML page that contains everything: no script, no font, nothing loaded from elsewhere.

The page itself is ``templates/report.html.jinja``.
"""

from __future__ import annotations

import shlex

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from liveupdate.model.evidence import Evidence
from liveupdate.model.plan import Plan
from liveupdate.model.verdict import Verdict
from liveupdate.report.common import (
    artifacts_of,
    clean,
    say_metric,
    say_outcome,
    say_seal,
    say_struck,
)
from liveupdate.report.timeline_svg import render_timeline


def _clean(value: object) -> object:
    """Clean whatever a template prints, except HTML that another template or plot made."""
    return value if isinstance(value, Markup) else clean(str(value))


_PAGES = Environment(
    loader=PackageLoader("liveupdate.report"),
    autoescape=True,
    finalize=_clean,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def render_html(plan: Plan, evidence: Evidence, verdict: Verdict) -> str:
    """Render the page."""
    provenance = evidence.provenance
    return _PAGES.get_template("report.html.jinja").render(
        headline=say_outcome(verdict),
        seal=say_seal(evidence),
        plan=plan,
        evidence=evidence,
        verdict=verdict,
        command=shlex.join(provenance.argv) if provenance else "",
        artifacts=artifacts_of(evidence),
        say_metric=say_metric,
        say_struck=say_struck,
        timeline=lambda hop: Markup(render_timeline(plan, hop, verdict)),
    )
