"""Prints the summary of a request log."""

from flows.cli.terminal import ResultConsole, escape
from tasks.serving.summary_file import RequestSummary


def show_requests(summary: RequestSummary) -> None:
    """Print the summary of a request log for people."""
    from tasks.evaluation.performance_estimate import ESTIMATE_ASSUMPTIONS

    console = ResultConsole()
    console.print(f"answers    {summary['answers']:,} logged in the last {summary['hours']:g} h")
    if summary["answers"]:
        versions = ", ".join(f"{version} ({count:,})" for version, count in summary["versions"].items())
        median, high = summary["latency_ms"]
        console.print(f"versions   {escape(versions)}")
        console.print(
            f"latency    median {median:.1f} ms, 95% within {high:.1f} ms; truncated {summary['truncated']:.1%}"
        )
    if summary["version"] is None:
        console.print("champion   none")
        return
    console.print(
        f"champion   version {summary['version']}: {summary['sentences']:,} distinct sentences, "
        f"{summary['unsure']:.1%} near the threshold"
    )
    for shift in summary["drift"]:
        mark = "[yellow]drifted[/]" if shift["drifted"] else "none"
        console.print(
            f"drift      {shift['name']}: {mark} ({shift['distance']:.3f}, limit {shift['limit']:g}, "
            f"p = {shift['p']:.2g})"
        )
    console.print(f"estimate   {escape(describe_estimate(summary))}")
    for assumption in ESTIMATE_ASSUMPTIONS if summary["estimate"] else ():
        console.print(f"assumed    {assumption}")


def describe_estimate(summary: RequestSummary) -> str:
    """Return the estimated MCC with its interval beside the champion's on its holdout, or why there is none."""
    estimate, holdout = summary["estimate"], summary["holdout"]
    if estimate is None or holdout is None:
        return f"none: {summary['no_estimate']}"
    return (
        f"MCC {estimate['mcc']:.3f} ({estimate['low']:.3f} to {estimate['high']:.3f}, 95%) without labels; "
        f"{holdout['mcc']:.3f} on the holdout"
    )
