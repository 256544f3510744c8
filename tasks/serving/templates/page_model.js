// Which model answers, asked every few seconds while somebody looks. Given by Gradio: element.
const told = element.querySelector("[role=status]");
const describe = (status) =>
  status.version ? `Version ${status.version} of ${status.model} answers.` : `No model answers yet: ${status.problem}.`;
const look = async () => {
  if (document.hidden) return;
  let text;
  try {
    text = describe(await (await fetch("readyz", { cache: "no-store" })).json());
  } catch {
    text = "The server does not answer.";
  }
  if (told.textContent !== text) told.textContent = text; // so that a screen reader speaks of changes alone
};
look();
setInterval(look, SECONDS * 1000);
document.addEventListener("visibilitychange", look);
