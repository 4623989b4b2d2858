-- Part of `claim`: the heap of those that are not where the sorted queue of candidates has them.
--
-- What is picked or moved by a release stands in a heap beside the queue of candidates: the queue comes
-- sorted, so that only a backend picked a second time costs more than one comparison. Of equal scores the
-- one that has waited longer is first: in round robin that is the sequence of the names.

heap, arrival = {}, {}

local function before(one, other)
  local a, b = score[one], score[other]
  if a ~= b then return a < b end
  return arrival[one] < arrival[other]
end

function push(n)
  size = size + 1
  arrivals = arrivals + 1
  arrival[n] = arrivals
  local hole = size
  while hole > 1 do
    local parent = (hole - hole % 2) / 2
    if not before(n, heap[parent]) then break end
    heap[hole] = heap[parent]
    hole = parent
  end
  heap[hole] = n
end

-- Puts n at the top of the heap in place of what is there, and lets it sink.
function sink(n)
  local hole, child = 1, 2
  while child <= size do
    if child < size and before(heap[child + 1], heap[child]) then child = child + 1 end
    if not before(heap[child], n) then break end
    heap[hole] = heap[child]
    hole, child = child, 2 * child
  end
  heap[hole] = n
end

function drop()
  local bottom = heap[size]
  heap[size] = nil
  size = size - 1
  if size > 0 then sink(bottom) end
end
