"use strict";
// Before anything is painted: the theme that was chosen with `t`; without one it is the system's.
{
  const theme = localStorage.getItem("logpipe-theme");
  if (theme) document.documentElement.dataset.theme = theme;
}
