// Messages over the picture that stay until their cause is gone or the user acts.

const box = document.getElementById("banners");
const shown = new Map(); // key -> element

/**
 * Show a message; a message with the same key is replaced.
 * actions: [[text, function], ...]. An action removes the message.
 */
export function showBanner(key, text, { kind = "warning", actions = [], dismiss = false } = {}) {
  const old = shown.get(key);
  if (old?.dataset.text === text) return;
  const element = document.createElement("div");
  element.className = `banner ${kind}`;
  element.dataset.key = key;
  element.dataset.text = text;
  element.innerHTML = '<svg aria-hidden="true"><use href="#i-alert"/></svg>';
  const message = document.createElement("p");
  message.textContent = text;
  element.append(message);
  for (const [label, action] of actions) {
    const button = document.createElement("button");
    button.textContent = label;
    button.addEventListener("click", () => {
      hideBanner(key);
      action();
    });
    element.append(button);
  }
  if (dismiss) {
    const close = document.createElement("button");
    close.className = "icon-button small";
    close.setAttribute("aria-label", "Close this message");
    close.innerHTML = '<svg><use href="#i-close"/></svg>';
    close.addEventListener("click", () => hideBanner(key));
    element.append(close);
  }
  if (old) old.replaceWith(element);
  else box.append(element);
  shown.set(key, element);
}

export function hideBanner(key) {
  shown.get(key)?.remove();
  shown.delete(key);
}
