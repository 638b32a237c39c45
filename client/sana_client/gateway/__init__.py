"""The gateway: live editing over WebSocket and WebRTC, jobs over HTTP, and the page, in front of a served model."""
