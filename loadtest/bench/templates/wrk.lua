-- wrk's script: what to send, and the result as one line of JSON.
-- Arguments: "get", or "upload" and the size of the body in bytes, or "keys" and the number of clients and paths.
function init(args)
  if args[1] == "upload" then
    wrk.method = "POST"
    wrk.body = string.rep("x", tonumber(args[2]))
  elseif args[1] == "keys" then
    local requests, at = {}, 0
    for n = 1, tonumber(args[2]) do
      local client = string.format("10.%d.%d.1", n / 256, n % 256)
      requests[n] = wrk.format(nil, wrk.path .. n, { ["X-Forwarded-For"] = client })
    end
    function request()
      at = at % #requests + 1
      return requests[at]
    end
  end
end

-- wrk gives microseconds; `status` counts answers of 400 and above.
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    'RESULT {"requests":%d,"bytes":%d,"microseconds":%d,"p50":%d,"p99":%d,'
      .. '"connect":%d,"read":%d,"write":%d,"timeout":%d,"status":%d}\n',
    summary.requests, summary.bytes, summary.duration,
    latency:percentile(50), latency:percentile(99),
    e.connect, e.read, e.write, e.timeout, e.status))
end
