// The flag buttons; the server's response is shown beside them. Gradio defines element, props and server.
element.addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-label]");
  if (!button || button.getAttribute("aria-busy") === "true") return;
  const group = button.closest(".flags");
  const output = group.querySelector(".written");
  const flag = { sentence: props.value.sentences[button.dataset.index], label: Number(button.dataset.label) };
  button.setAttribute("aria-busy", "true");
  let response;
  try {
    response = await server.flag(flag);
  } catch {
    response = null;
  }
  button.removeAttribute("aria-busy");
  // Where the server refuses the request, the response is no object with these fields.
  const written = Boolean(response && response.written);
  output.textContent = (response && response.text) || "not written: the server does not answer";
  output.classList.toggle("failed", !written);
  if (!written) return;
  for (const other of group.querySelectorAll("button")) other.setAttribute("aria-pressed", String(other === button));
});
