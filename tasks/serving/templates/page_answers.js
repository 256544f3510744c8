// The flag buttons: what the server answers stands beside them. Given by Gradio: element, props, server.
element.addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-label]");
  if (!button || button.getAttribute("aria-busy") === "true") return;
  const group = button.closest(".flags");
  const told = group.querySelector(".written");
  const flag = { sentence: props.value.sentences[button.dataset.place], label: Number(button.dataset.label) };
  button.setAttribute("aria-busy", "true");
  let answer;
  try {
    answer = await server.flag(flag);
  } catch {
    answer = null;
  }
  button.removeAttribute("aria-busy");
  // A refusal of the server comes as something else than an answer.
  const written = Boolean(answer && answer.written);
  told.textContent = (answer && answer.text) || "not written: the server does not answer";
  told.classList.toggle("failed", !written);
  if (!written) return;
  for (const other of group.querySelectorAll("button")) other.setAttribute("aria-pressed", String(other === button));
});
