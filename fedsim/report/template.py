"""The page, as a jinja2 template. A Python file, because a Flower bundle carries no other kind of template."""

STYLE = """\
:root { --ink: #222; --soft: #595959; --line: #d8d8d8; --accent: #0072b2; --warn: #d55e00; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 60rem; color: var(--ink); background: #fff;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; }
h1 { margin: 0 0 .3rem; font-size: 1.9rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 2.8rem 0 .6rem; padding-top: .5rem; border-top: 1px solid var(--line); font-size: 1.25rem; }
.facts { margin: 0; padding: 0; list-style: none; color: var(--soft); }
.facts li { display: inline-block; margin-right: 1.2rem; }
.facts b { color: var(--ink); font-weight: 600; }
.lead { margin: 1.4rem 0 .4rem; font-size: 1.15rem; }
.more { margin: .4rem 0; }
.note { margin: 1.2rem 0; padding: .6rem .9rem; border-left: 4px solid var(--warn); background: #fdf3ec; }
.note ul { margin: .3rem 0 0; padding-left: 1.2rem; }
.highlights { display: flex; flex-wrap: wrap; gap: .5rem 2.4rem; margin: 1.4rem 0 0; }
.highlights div { display: flex; flex-direction: column-reverse; }
.highlights dt { color: var(--soft); font-size: .85rem; }
.highlights dd { margin: 0; font-size: 1.5rem; font-weight: 600; font-variant-numeric: tabular-nums; }
figure { margin: 1rem 0 0; }
figure svg { display: block; width: 100%; height: auto; }
figcaption, .hint { color: var(--soft); font-size: .9rem; }
.missing { padding: .8rem 1rem; border: 1px dashed var(--line); color: var(--soft); }
.scroll { overflow-x: auto; }
.scroll td:last-child { min-width: 11rem; }
table { width: 100%; border-collapse: collapse; font-size: .92rem; }
th, td { padding: .32rem .7rem .32rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
thead th { border-bottom: 2px solid var(--soft); vertical-align: bottom; }
th[scope=row] { font-weight: 500; white-space: nowrap; }
td.number, th.number { padding-right: 1.4rem; text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.way { white-space: nowrap; }
.pairs th { width: 15rem; color: var(--soft); font-weight: 400; }
.pairs td, .name { overflow-wrap: anywhere; }
td.name { min-width: 8.5rem; overflow-wrap: break-word; }
details { margin-top: 1rem; }
summary { cursor: pointer; font-weight: 600; color: var(--accent); }
pre { padding: .9rem; overflow-x: auto; background: #f6f6f6; font: .85rem/1.45 ui-monospace, "DejaVu Sans Mono", monospace; }
@media print {
  body { max-width: none; padding: 0; font-size: 11pt; }
  h2 { break-after: avoid; }
  figure, tr { break-inside: avoid; }
  pre { white-space: pre-wrap; }
}
"""
"""How every page looks."""

PAIRS = """\
{% macro pairs(rows, label) %}
<table class="pairs" aria-label="{{ label }}">
{% for name, value in rows %}
<tr><th scope="row">{{ name }}</th><td>{{ value }}</td></tr>
{% endfor %}
</table>
{% endmacro %}
"""
"""A macro: a table of names and values."""


def head(what: str, style: str = "") -> str:
    """Return the beginning of a page, as far as its facts; it takes `title` and `facts`, (name, value) each.

    Args:
        what: What the page says of its title.
        style: Rules of its own.
    """
    return (
        """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}: """
        + what
        + """</title>
<style>
"""
        + STYLE
        + style
        + """\
</style>
</head>
<body>
<header>
<h1>{{ title }}</h1>
<ul class="facts">
{% for name, value in facts %}
<li>{{ name }} <b>{{ value }}</b></li>
{% endfor %}
</ul>
</header>
<main>
"""
    )


TEMPLATE = (
    """\
{% macro figure(name, caption) %}
<figure id="figure-{{ name }}">
{% if pictures[name].image %}
{{ pictures[name].image }}
<figcaption>{{ caption }}</figcaption>
{% else %}
<p class="missing">{{ pictures[name].missing }}</p>
{% endif %}
</figure>
{% endmacro %}
"""
    + PAIRS
    + """\
"""
    + head("who the model serves")
    + """\
{% if status != "finished" %}
<div class="note" role="note"><b>This run {{ "failed" if status == "failed" else "was interrupted" }}.</b>{% if error %} {{ error }}.{% endif %}
{% if last_evaluated is not none %}Everything below is about round {{ last_evaluated }}, the last one evaluated.{% else %}No round was evaluated.{% endif %}
</div>
{% endif %}
{% if problems %}
<div class="note" role="note">Some parts of the run folder are not there:
<ul>{% for line in problems %}<li>{{ line }}</li>{% endfor %}</ul></div>
{% endif %}
{% if sentences %}
<p class="lead">{{ sentences[0] }}</p>
{% for sentence in sentences[1:] %}
<p class="more">{{ sentence }}</p>
{% endfor %}
{% else %}
<p class="lead">No client was evaluated, so nothing can be said yet about whom the model serves.</p>
{% endif %}
{% if highlights %}
<dl class="highlights">
{% for name, value in highlights %}
<div><dt>{{ name }}</dt><dd>{{ value }}</dd></div>
{% endfor %}
</dl>
{% endif %}
{% if unevaluated > 0 %}
<p class="hint">{{ unevaluated }} of {{ num_clients }} clients have no test value; they are left out, not counted as 0.</p>
{% endif %}

<h2 id="rounds">Accuracy over the rounds</h2>
{{ figure("accuracy", "Test accuracy of all clients, sampled or not. The worst 10 % are chosen anew at each evaluation.") }}

{% if cost or "system" in pictures %}
<h2 id="system">Accuracy against time and traffic</h2>
{% if "system" in pictures %}
{{ figure("system", "On the virtual clock of the scenario's [system], and over the numbers sent to and from the clients, those of lost clients included. Evaluation takes neither time nor traffic.") }}
{% endif %}
{% if cost %}{{ pairs(cost, "What the run cost") }}{% endif %}
{% endif %}

<h2 id="distribution">How accuracy is spread over clients</h2>
{{ figure("distribution", "Each client's test accuracy at the last evaluation, from worst to best (left), and how many clients see which accuracy (right).") }}

<h2 id="badly-served">Who is served badly</h2>
{% if clients %}
<div class="scroll"><table>
<thead><tr><th scope="col" class="number">Client</th>
{% if clients | selectattr("name") | list %}<th scope="col">Name</th>{% endif %}
<th scope="col" class="number">Accuracy</th><th scope="col" class="number">95 % interval</th><th scope="col" class="number">Loss</th>
<th scope="col" class="number">Test examples</th><th scope="col" class="number">Train examples</th><th scope="col">Main classes</th></tr></thead>
<tbody>
{% for row in clients %}
<tr><td class="number">{{ row.client }}</td>
{% if clients | selectattr("name") | list %}<td class="name">{{ row.name }}</td>{% endif %}
<td class="number">{{ row.accuracy }}</td><td class="number">{{ row.interval }}</td><td class="number">{{ row.loss }}</td>
<td class="number">{{ row.test_examples }}</td><td class="number">{{ row.train_examples }}</td><td>{{ row.classes }}</td></tr>
{% endfor %}
</tbody></table></div>
<p class="hint">The {{ clients | length }} worst served of {{ num_clients }} clients. The interval is what this many test
examples can tell about one client (Wilson, 95 %); the lowest of many clients is partly low by chance.
{% if class_note %}A client holds much of a class if it makes up a fifth of its training examples and twice its share of all of them.{% endif %}</p>
{% endif %}
{{ figure("size", "Test accuracy at the last evaluation against the client's training examples.") }}

{% if measured or "concentration" in pictures or "quality" in pictures or "groups" in pictures %}
<h2 id="beyond">Beyond accuracy</h2>
{% if "groups" in pictures %}
{{ figure("groups", "All clients' test examples together. Demographic parity compares how often a class is predicted for two groups; equalised odds compares the same among examples of one true class; the accuracy gap is the largest minus the smallest accuracy; MacroStd (our definition) is the standard deviation of accuracy over groups.") }}
{% endif %}
{% if "quality" in pictures %}
{{ figure("quality", "Calibration error: mean distance between confidence and accuracy over bins of the confidence, 0 when the model is right as often as it claims. Macro F1: mean of the classes' F1 scores, in which a rare class counts as much as a common one.") }}
{% endif %}
{% if "concentration" in pictures %}
{{ figure("concentration", "All clients' test examples together. CMI: mean KL divergence of an output distribution from the mean one of its class, low when a class is concentrated. Gamma: cross entropy between outputs of different classes, high when classes are separated. NCMI: CMI over Gamma, lower is better.") }}
{% endif %}
{% if measured %}
<div class="scroll"><table>
<thead><tr><th scope="col">Metric</th><th scope="col" class="number">All examples</th><th scope="col" class="number">Mean client</th>
<th scope="col" class="number">Worst 10 %</th><th scope="col">Better</th><th scope="col">Definition</th></tr></thead>
<tbody>
{% for row in measured %}
<tr><th scope="row">{{ row.name }}</th>{% for cell in (row.pooled, row.mean, row.worst) %}<td class="number" data-metric="{{ cell.value }}">{{ cell.text }}</td>{% endfor %}
<td class="way">{{ row.better }}</td><td>{{ row.definition }}</td></tr>
{% endfor %}
</tbody></table></div>
<p class="hint">“All examples” is the value of all clients' test examples together, exact from sums that the clients send; it is not a mean over clients.</p>
{% endif %}
{% endif %}

<h2 id="partition">Who holds what</h2>
{{ figure("partition", "Training examples of each client (above) and the share of each class in them (below).") }}

<h2 id="certificate">Did each round keep its promise?</h2>
{{ figure("certificate", "Over the sampled clients of each round, as far as the rule has it: d is the direction, g_k a client's update. A smallest descent rate above 0 means that, to first order and where updates are gradients, no sampled client is made worse. The spread of the rates is that of d·g_k / c_k, c_k the rate asked for; 0 means that all losses fall as asked. A negative weight moves away from a client's own update, as a fairness term may. The step is d times the server learning rate. Clients whose test loss fell are counted over all clients, from one evaluation to the next. In long runs the dark line is the running median.") }}

<h2 id="loss">Training loss</h2>
{{ figure("loss", "At the weights the clients received, before any local step; the mean is over the clients sampled in that round.") }}

{% if "hooks" in pictures %}
<h2 id="hooks">What the clients' hooks reported</h2>
{{ figure("hooks", "Over the clients sampled in each round. Concentration is the mean of KL(P || Q_y) over a client's local steps, with its own centroids; epsilon is the privacy a client's updates have spent so far. Other names are the hook's own.") }}
{% endif %}

<h2 id="measures">All measures</h2>
{% if measures %}
<div class="scroll"><table>
<thead><tr><th scope="col">Measure</th><th scope="col" class="number">Test accuracy</th><th scope="col" class="number">Test loss</th>
<th scope="col">Better</th><th scope="col">Definition</th></tr></thead>
<tbody>
{% for row in measures %}
<tr><th scope="row">{{ row.name }}</th><td class="number" data-value="{{ row.accuracy.value }}">{{ row.accuracy.text }}</td>
<td class="number" data-value="{{ row.loss.value }}">{{ row.loss.text }}</td><td class="way">{{ row.better }}</td><td>{{ row.definition }}</td></tr>
{% endfor %}
</tbody></table></div>
<p class="hint">“higher / lower” means higher for accuracies and lower for losses; worst is the low end of accuracies and
the high end of losses. Standard deviation and variance shrink when everyone gets worse: read them beside the mean.</p>
{% else %}
<p class="missing">No client was evaluated.</p>
{% endif %}
<table class="pairs" aria-label="Further results">
<tr><th scope="row">Clients whose test loss fell, mean over evaluations</th><td data-value="{{ improved_value }}">{{ improved }}</td></tr>
{% if central %}
<tr><th scope="row">Common test set</th><td><span data-value="{{ central.accuracy_value }}">{{ central.accuracy }}</span> accuracy, loss {{ central.loss }}</td></tr>
{% endif %}
</table>

<h2 id="again">How it was run</h2>
{% if origin %}{{ pairs(origin, "Time and fingerprints") }}{% endif %}
{% if environment %}
<details><summary>Environment</summary>
{{ pairs(environment, "Environment") }}
</details>
{% endif %}
{% if scenario %}
<details><summary>Scenario, as resolved</summary>
<pre>{{ scenario }}</pre>
</details>
{% endif %}
</main>
</body>
</html>
"""
)
