(function () {
  var button = document.getElementById("theme"), root = document.documentElement;
  var system = window.matchMedia("(prefers-color-scheme: dark)");
  function dark() { return root.dataset.theme ? root.dataset.theme === "dark" : system.matches; }
  function tell() { button.setAttribute("aria-pressed", String(dark())); }
  button.hidden = false;
  button.addEventListener("click", function () { root.dataset.theme = dark() ? "light" : "dark"; tell(); });
  system.addEventListener("change", tell);
  tell();
})();
