"""Servers over a Memory: HTTP (`nbmf serve`), MCP (`nbmf mcp`), and the client of the first."""
