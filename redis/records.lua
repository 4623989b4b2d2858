-- Part of `claim`: reads the records of the backends from number `first` on, behind what else is asked for in the
-- `fields` of the pool and of its `own` lease.
local skip, skip_own = #fields, #own
for n = first, total do
  fields[skip + n - known], own[skip_own + n - known] = ids[n], ids[n]
end
local held, seen = many('HMGET', lease, own), many('HMGET', state, fields)
for n = first, total do
  local record = seen[skip + n - known]
  if record and #record == SHORT then
    inflight[n], requests[n], weight[n], cap[n], saved[n] = unpack_record(RECORD, record)
  elseif record then
    if cost == NONE then cost, since = {}, {} end
    inflight[n], requests[n], weight[n], cap[n], saved[n], cost[n], since[n] = unpack_record(TIMED, record)
  else
    inflight[n], requests[n], weight[n], cap[n], saved[n] = 0, 0, GONE, 0, NEVER
  end
  mine[n] = tonumber(held[skip_own + n - known]) or 0
end
known = total
