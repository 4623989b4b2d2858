-- What a worker holds by its lease. Needs order.lua.
--
-- A lease is a list. First comes its epoch; then what the worker held when it said so last: backend, connections,
-- backend, connections, with tabs between; then an entry for each call since: the backends it was given, with tabs
-- between, a "\n", and those it has given back. A call adds one entry, however many backends are in it: counts by
-- backend would have to be read and written for each of them. The worker says anew what it holds before the list gets
-- long.

-- Backend id -> connections.
local function held_by(lease)
  local said, held = call('LRANGE', lease, 1, -1), {}
  for id, connections in string.gmatch(said[1] or '', '([^\t]+)\t([^\t]+)') do held[id] = tonumber(connections) end
  for j = 2, #said do
    local taken, given = string.match(said[j], '^([^\n]*)\n(.*)$')
    for id in string.gmatch(taken, '[^\t]+') do held[id] = (held[id] or 0) + 1 end
    for id in string.gmatch(given, '[^\t]+') do held[id] = (held[id] or 0) - 1 end
  end
  return held
end
