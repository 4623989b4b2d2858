-- Part of `claim`: reads the records of the backends from number `first` on, behind what else is asked for in the
-- `fields` of the pool.
local skip = #fields
for n = first, total do fields[skip + n - known] = ids[n] end
local seen = many('HMGET', state, fields)
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
end
known = total
