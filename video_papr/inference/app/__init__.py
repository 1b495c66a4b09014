"""The browser demo: `look` answers, `jobs` queues, `server` speaks HTTP, `page/` is what the browser shows."""
