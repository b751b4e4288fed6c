// The copy button gives what a reader would type: no prompts, no output.
for (const code of document.querySelectorAll(".language-pycon code"))
  code.dataset.copy = code.textContent
    .split("\n")
    .filter((line) => /^$|^(>>>|\.\.\.)( |$)/.test(line))
    .map((line) => line.slice(4))
    .join("\n");
