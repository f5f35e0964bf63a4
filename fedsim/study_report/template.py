"""The page of a study, as a jinja2 template. A Python file, because a Flower bundle carries no other kind."""

from fedsim.report.template import PAIRS, head

_STYLE = """\
h3 { margin: 1.9rem 0 .5rem; font-size: 1.05rem; }
nav ul { margin: 1rem 0 0; padding: 0; list-style: none; }
nav li { display: inline-block; margin: 0 1.1rem .3rem 0; }
a { color: var(--accent); }
.number small { display: block; color: var(--soft); font-size: .86em; }
td.better { font-weight: 600; }
td.better small, thead small { font-weight: 400; }
.mark { font-size: .8em; }
.better .mark { color: var(--accent); }
.worse .mark { color: var(--warn); }
.baseline th { font-weight: 700; }
.scroll th[scope=row], .scroll thead th:first-child { position: sticky; left: 0; max-width: 17rem; background: #fff;
  overflow-wrap: break-word; white-space: normal; min-width: 7rem; z-index: 1; }
.dense { font-size: .84rem; }
.dense td.number, .dense th.number { padding-right: .7rem; }
.compact td.number, .compact th.number { padding-right: .9rem; }
.compact th.number { white-space: normal; }
th.method { white-space: normal; overflow-wrap: anywhere; min-width: 6.5rem; }
.scroll td:last-child { min-width: 0; }
.files { white-space: nowrap; font-weight: 400; font-size: .9rem; }
.scroll td.text, .scroll td.text:last-child { overflow-wrap: break-word; min-width: 9rem; }
code, .line { overflow-wrap: anywhere; white-space: pre-wrap; }
.name { overflow-wrap: anywhere; }
code { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .9em; }
pre { overflow-wrap: anywhere; }
@media (max-width: 51rem) {
  body { padding: 1.2rem 1rem 3rem; }
  .drawing { overflow-x: auto; }
  .drawing svg { min-width: 48rem; }
  .pairs th { width: 8rem; white-space: normal; overflow-wrap: anywhere; }
}
"""

TEMPLATE = (
    """\
{% macro figure(picture) %}
<figure id="figure-{{ picture.name }}">
{% if picture.image %}
<div class="drawing">{{ picture.image }}</div>
<figcaption>{{ picture.caption }} <span class="files">(<a href="figures/{{ picture.name }}.png">PNG</a>, <a href="figures/{{ picture.name }}.svg">SVG</a>, <a href="figures/{{ picture.name }}.pdf">PDF</a>)</span></figcaption>
{% else %}
<p class="missing">{{ picture.missing }}</p>
{% endif %}
</figure>
{% endmacro %}
{% macro files(name, tex=True) %}
{% if name ~ ".csv" in tables %}<span class="files">(<a href="tables/{{ name }}.csv">CSV</a>{% if tex %}, <a href="tables/{{ name }}.tex">LaTeX</a>{% endif %})</span>{% endif %}
{% endmacro %}
"""
    + PAIRS
    + """\
"""
    + head("a comparison of methods", _STYLE)
    + """\
{% if status != "finished" %}
<div class="note" role="note"><b>{{ "Some runs of this study failed" if status == "failed" else "This study is not finished" }}.</b> {{ unfinished }}</div>
{% endif %}
{% if description %}<p class="more">{{ description }}</p>{% endif %}
{% if words %}
<p class="lead">{{ words[0] }}</p>
{% for sentence in words[1:] %}
<p class="more">{{ sentence }}</p>
{% endfor %}
{% else %}
<p class="lead">No comparison can be made yet.</p>
{% endif %}
{% if warnings %}
<div class="note" role="note">Read with care:
<ul>{% for line in warnings %}<li>{{ line }}</li>{% endfor %}</ul></div>
{% endif %}
{% if problems %}
<div class="note" role="note">Parts of run folders could not be read. Figures of clients and rounds lack them; tables do not, their numbers are those of study.json.
<ul>{% for line in problems %}<li>{{ line }}</li>{% endfor %}</ul></div>
{% endif %}
<nav aria-label="Contents"><ul>
{% for scene in scenes %}<li><a href="#scenario-{{ scene.slug }}">{{ scene.name }}</a></li>{% endfor %}
{% if ranks %}<li><a href="#ranks">Across scenarios</a></li>{% endif %}
<li><a href="#measures">All measures</a></li>
<li><a href="#tests">Tests in detail</a></li>
{% if tuning %}<li><a href="#tuning">Tuning</a></li>{% endif %}
<li><a href="#runs">What was run</a></li>
<li><a href="#definitions">Definitions</a></li>
</ul></nav>

{% for scene in scenes %}
<section id="scenario-{{ scene.slug }}">
<h2>{{ scene.name }}</h2>
{% if scene.description %}<p class="more">{{ scene.description }}</p>{% endif %}
<ul class="facts">
{% for name, value in scene.facts %}<li>{{ name }} <b>{{ value }}</b></li>{% endfor %}
</ul>
{% if scene.notes %}<ul class="hint">{% for note in scene.notes %}<li>{{ note }}</li>{% endfor %}</ul>{% endif %}

<h3>Against {{ baseline }} {{ files("comparison-" ~ scene.slug) }}</h3>
{% if scene.comparison %}
<div class="scroll"><table class="compact">
<thead><tr><th scope="col">Method</th>
{% for name in tested %}<th scope="col" class="number">{{ name }}</th>{% endfor %}
{% if scene.wins %}<th scope="col" class="number">Clients better /<br>equal / worse (%)</th>{% endif %}</tr></thead>
<tbody>
{% for row in scene.comparison %}
<tr{% if row.method == baseline %} class="baseline"{% endif %}><th scope="row">{{ row.method }}{% if row.pairs < scene.pairs | length %} <small class="hint">({{ row.pairs }} of {{ scene.pairs | length }} pairs)</small>{% endif %}</th>
{% for cell in row.cells %}<td class="number {{ cell.verdict }}" data-value="{{ cell.value }}">{{ cell.level }}{% if cell.gap %}<small>{{ cell.gap }} {{ cell.interval }} {% if cell.mark %}<span class="mark" title="significantly {{ cell.verdict }}">{{ cell.mark }}</span>{% endif %}</small>{% endif %}</td>{% endfor %}
{% if scene.wins %}<td class="number">{{ row.wins }}{% if row.wins_interval %}<small>better: {{ row.wins_interval }}</small>{% endif %}</td>{% endif %}</tr>
{% endfor %}
</tbody></table></div>
<p class="hint">{{ scene.comparison_hint }}</p>
{% else %}
<p class="missing">No run of this scenario is finished.</p>
{% endif %}

{% for head, table, pictures in scene.figures %}
<h3>{{ head }}{% if table %} {{ files(table ~ "-" ~ scene.slug, False) }}{% endif %}</h3>
{% for picture in pictures %}
{{ figure(picture) }}
{% endfor %}
{% endfor %}
{% if scene.not_finished %}
<h3>Runs that did not finish</h3>
<div class="scroll"><table>
<thead><tr><th scope="col">Method</th><th scope="col">Pair</th><th scope="col">Status</th><th scope="col">Cause</th></tr></thead>
<tbody>{% for method, pair, state, cause in scene.not_finished %}
<tr><th scope="row">{{ method }}</th><td class="way">{{ pair }}</td><td>{{ state }}</td><td class="text">{{ cause }}</td></tr>{% endfor %}
</tbody></table></div>
{% endif %}
</section>
{% endfor %}

{% if ranks %}
<h2 id="ranks">Across scenarios {{ files("ranks") }}</h2>
{% for sentence in ranks.cautions %}<p class="more">{{ sentence }}</p>{% endfor %}
{% for sentence in ranks.words %}<p class="more">{{ sentence }}</p>{% endfor %}
<div class="scroll"><table>
<thead><tr><th scope="col">Average rank</th>{% for name in ranks.header %}<th scope="col" class="number">{{ name }}</th>{% endfor %}</tr></thead>
<tbody>{% for method, cells in ranks.rows %}
<tr{% if method == baseline %} class="baseline"{% endif %}><th scope="row">{{ method }}</th>{% for cell in cells %}<td class="number">{{ cell }}</td>{% endfor %}</tr>{% endfor %}
</tbody></table></div>
<p class="hint">Rank 1 is best; methods with equal means share their ranks. Over {{ ranks.names }}.</p>
{% for picture in ranks.pictures %}
{{ figure(picture) }}
{% endfor %}
{% elif scenes | length > 1 %}
<p class="missing">There are no ranks: they need two methods, and two scenarios where no method lacks {{ units }} that others have.</p>
{% endif %}

<h2 id="measures">All measures</h2>
{% for scene in scenes %}
<h3>{{ scene.name }} {{ files("measures-" ~ scene.slug) }}</h3>
{% if scene.levels %}
<div class="scroll"><table{% if scene.few %} class="dense"{% endif %}>
{% if scene.few %}
<thead><tr><th scope="col">Measure</th>{% for method, _ in scene.levels %}<th scope="col" class="number method">{{ method }}</th>{% endfor %}</tr></thead>
<tbody>{% for _, name in scene.level_columns %}{% set place = loop.index0 %}
<tr><th scope="row">{{ name }}</th>{% for _, cells in scene.levels %}<td class="number" data-measure="{{ cells[place][1] }}">{{ cells[place][0] }}</td>{% endfor %}</tr>{% endfor %}
</tbody>
{% else %}
<thead><tr><th scope="col">Method</th>{% for _, name in scene.level_columns %}<th scope="col" class="number">{{ name }}</th>{% endfor %}</tr></thead>
<tbody>{% for method, cells in scene.levels %}
<tr{% if method == baseline %} class="baseline"{% endif %}><th scope="row">{{ method }}</th>{% for text, value in cells %}<td class="number" data-measure="{{ value }}">{{ text }}</td>{% endfor %}</tr>{% endfor %}
</tbody>
{% endif %}
</table></div>
{% else %}
<p class="missing">No run of this scenario is finished.</p>
{% endif %}
{% endfor %}
<p class="hint">Mean ± standard deviation over {{ units }}, of the clients' test accuracies at the last evaluation and, where it says so, of their test losses. Standard deviation and variance over clients shrink when everyone gets worse: read them beside the mean.</p>

<h2 id="tests">Tests in detail {{ files("values", False) }}</h2>
{% for scene in scenes %}
<h3>{{ scene.name }} {{ files("statistics-" ~ scene.slug) }}</h3>
{% if scene.details %}
{% set crossed = scene.details | selectattr("agree") | list %}
<details{% if scene.details | length <= 30 %} open{% endif %}><summary>{{ scene.details | length }} differences</summary>
<div class="scroll"><table class="compact">
<thead><tr><th scope="col">Method</th><th scope="col">Measure</th><th scope="col" class="number">{{ units | capitalize }}</th><th scope="col" class="number">Difference<small>interval: bootstrap</small><small>t</small></th>
<th scope="col" class="number">d<sub>z</sub><small>rank-biserial</small></th><th scope="col" class="number">t test: p, Holm<small>p</small><small>t</small></th><th scope="col" class="number">Wilcoxon: p, Holm<small>p</small><small>W</small></th>
{% if crossed %}<th scope="col" class="number">Partitions<small>that agree</small></th>{% endif %}</tr></thead>
<tbody>{% for row in scene.details %}
<tr><th scope="row">{% if row.significant %}<b>{{ row.method }}</b>{% else %}{{ row.method }}{% endif %}</th><td class="way">{{ row.metric }}</td><td class="number">{{ row.pairs }}</td>
<td class="number">{{ row.difference }}<small>{{ row.interval }}</small><small>{{ row.t_interval }}</small></td><td class="number">{{ row.effect_size }}<small>{{ row.rank_biserial }}</small></td>
<td class="number">{{ row.t_p_holm }}<small>{{ row.t_p }}</small><small>{{ row.t }}</small></td><td class="number">{{ row.wilcoxon_p_holm }}<small>{{ row.wilcoxon_p }}</small><small>{{ row.wilcoxon }}</small></td>
{% if crossed %}<td class="number">{{ row.agree }}</td>{% endif %}</tr>{% endfor %}
</tbody></table></div>
</details>
{% else %}
<p class="missing">There is no difference to test yet.</p>
{% endif %}
{% endfor %}
<p class="hint">Differences are method minus {{ baseline }} on the same pair{% if units == "seeds" %}, averaged over the partitions of each seed{% endif %}. d_z: mean difference over its standard deviation, with Hedges' correction for small n. Rank-biserial: sum of ranks of positive differences minus that of negative ones, over their sum. W: Wilcoxon's signed-rank statistic. Methods in bold differ significantly in that measure.</p>

{% if tuning %}
<h2 id="tuning">Tuning {{ files("tuning") }}</h2>
<p class="more">{{ tuning.said }}</p>
{% for scene in scenes %}
{% if scene.tuned %}
<h3>{{ scene.name }}</h3>
<div class="scroll"><table>
<thead><tr><th scope="col">Method</th><th scope="col">Chosen values</th><th scope="col" class="number">{{ tuning.score }}</th><th scope="col">At the edge of its grid</th></tr></thead>
<tbody>{% for method, values, score, edge in scene.tuned %}
<tr><th scope="row">{{ method }}</th><td class="text">{{ values }}</td><td class="number">{{ score }}</td><td class="text">{{ edge }}</td></tr>{% endfor %}
</tbody></table></div>
{% endif %}
{% if scene.trials %}
<details><summary>All {{ scene.trials | length }} trials on {{ scene.name }}</summary>
<div class="scroll"><table>
<thead><tr><th scope="col">Method</th><th scope="col">Values</th><th scope="col" class="number">{{ tuning.score }}</th><th scope="col">Cause of failure</th></tr></thead>
<tbody>{% for method, values, score, error in scene.trials %}
<tr><th scope="row">{{ method }}</th><td class="text">{{ values }}</td><td class="number">{{ score }}</td><td class="text">{{ error }}</td></tr>{% endfor %}
</tbody></table></div>
</details>
{% endif %}
{% endfor %}
<details><summary>Grids</summary>{{ pairs(tuning.grids, "Grids") }}</details>
{% endif %}

<h2 id="runs">What was run {{ files("runs", False) }}</h2>
{% if command %}<p class="more">Again, in one line:</p><pre class="line">{{ command }}</pre>{% endif %}
{{ pairs(origin, "Origin") }}
<h3>Methods</h3>
<div class="scroll"><table>
<thead><tr><th scope="col">Method</th><th scope="col">Strategy</th><th scope="col">Changes to the scenario</th>{% if methods | selectattr("notes") | list %}<th scope="col">Notes</th>{% endif %}</tr></thead>
<tbody>{% for method in methods %}
<tr{% if method.label == baseline %} class="baseline"{% endif %}><th scope="row">{{ method.label }}</th><td>{{ method.strategy }}</td><td class="text">{% for change in method.changes %}<code>{{ change }}</code>{% if not loop.last %}<br>{% endif %}{% endfor %}</td>{% if methods | selectattr("notes") | list %}<td class="text">{{ method.notes | join(" ") }}</td>{% endif %}</tr>{% endfor %}
</tbody></table></div>
{% if scenes | selectattr("settings") | list %}
<h3>Settings in full {{ files("settings") }}</h3>
<p class="more">As each method ran{% if tuning %}, after tuning{% endif %}; what is not here is the same for all, and in the scenario below.</p>
{% for scene in scenes %}
{% if scene.settings %}
<details><summary>{{ scene.name }}: settings of {{ scene.settings.rows | length }} methods</summary>
<div class="scroll"><table class="compact">
<thead><tr><th scope="col">Method</th>{% for name in scene.settings.columns %}<th scope="col" class="number"><code>{{ name }}</code></th>{% endfor %}<th scope="col">Options of the strategy</th>{% if scene.settings.others %}<th scope="col">Others</th>{% endif %}</tr></thead>
<tbody>{% for row in scene.settings.rows %}
<tr{% if row.method == baseline %} class="baseline"{% endif %}><th scope="row">{{ row.method }}</th>{% for value in row.cells %}<td class="number">{{ value }}</td>{% endfor %}<td class="text">{{ row.options }}</td>{% if scene.settings.others %}<td class="text">{{ row.others }}</td>{% endif %}</tr>{% endfor %}
</tbody></table></div>
</details>
{% endif %}
{% endfor %}
{% endif %}
{% for scene in scenes %}
{% if scene.toml %}
<details><summary>{{ scene.name }}: the scenario, as resolved for {{ methods[0].label }}</summary>
<pre>{{ scene.toml }}</pre>
</details>
{% endif %}
<details><summary>{{ scene.name }}: {{ scene.pairs | length }} pairs and their fingerprints</summary>
<div class="scroll"><table>
<thead><tr><th scope="col">Pair</th>{% for name in ("Partition", "Data", "Initial weights", "Sampled clients") %}<th scope="col">{{ name }} (SHA-256)</th>{% endfor %}</tr></thead>
<tbody>{% for name, hashes in scene.pairs %}
<tr><th scope="row">{{ name }}</th>{% for hash in hashes %}<td class="text"><code>{{ hash }}</code></td>{% endfor %}</tr>{% endfor %}
</tbody></table></div>
</details>
{% endfor %}
{% if environment %}
<details><summary>Environment</summary>
{{ pairs(environment, "Environment") }}
</details>
{% endif %}

<h2 id="definitions">Definitions</h2>
<h3>Measures</h3>
{{ pairs(definitions, "Measures") }}
<h3>Statistics</h3>
{{ pairs(terms, "Terms of the statistics") }}
</main>
</body>
</html>
"""
)
