-- wrk's script: what to send, and the result as one line of JSON.
-- Arguments: "get", or "upload" and the size of the body in bytes.
function init(args)
  if args[1] == "upload" then
    wrk.method = "POST"
    wrk.body = string.rep("x", tonumber(args[2]))
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
