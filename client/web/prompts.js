// The last prompts, remembered by this browser.

const KEY = "recent-prompts";
const MOST = 8;
const FIRST = [
  "Turn day into night",
  "Turn the video into a pencil drawing",
  "Turn the video into an old sepia photograph",
];

export function recent() {
  try {
    return JSON.parse(localStorage.getItem(KEY)) ?? FIRST;
  } catch {
    return FIRST; // somebody else's data under this key
  }
}

export function remember(prompt) {
  const others = recent().filter((known) => known !== prompt);
  localStorage.setItem(KEY, JSON.stringify([prompt, ...others].slice(0, MOST)));
}
