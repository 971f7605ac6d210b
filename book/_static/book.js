// Pages are also opened from the file system, where a page may not fetch another one: the search then
// shows titles only, without the summaries that it would fetch.
if (location.protocol === "file:") {
  DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
}
