// The version of the loaded model, polled every few seconds while the page is visible. Gradio defines element.
const output = element.querySelector("[role=status]");
const describe = (status) => {
  if (!status.version) return `No model is loaded yet: ${status.problem}.`;
  const percent = +(100 * status.decision_threshold).toFixed(1);
  const threshold = percent === 50 ? "" : ` Above ${percent}% a sentence is acceptable to it.`;
  return `Version ${status.version} of ${status.model} is loaded.${threshold}`;
};
const poll = async () => {
  if (document.hidden) return;
  let text;
  try {
    text = describe(await (await fetch("readyz", { cache: "no-store" })).json());
  } catch {
    text = "The server does not answer.";
  }
  if (output.textContent !== text) output.textContent = text; // so that a screen reader announces changes only
};
poll();
setInterval(poll, SECONDS * 1000);
document.addEventListener("visibilitychange", poll);
