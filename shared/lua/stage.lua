--- Append a job's chunks before anybody hears of the job; they go by themselves if nobody does.
-- Needs    base
--
-- KEYS[1]  P gate    declares the shard's slot
-- ARGV[1]  P         ARGV[2]  job id      ARGV[3]  number of the first chunk, from 0
-- ARGV[4…]           msgpack chunks, together at most 1 MB
-- Writes   P job:<id>:chunks, ids `<number + 1>-0` (a stream id must be above 0-0), TTL 10 min
-- Returns  how many were appended
-- Repeat   a chunk that is there is left
-- Cost     O(chunks)
local k = job_key(ARGV[2]) .. ':chunks'
local last = call('XREVRANGE', k, '+', '-', 'COUNT', 1)
local have = last[1] and num(string.match(last[1][1], '^(%d+)')) or 0
local added = 0
for i = 4, #ARGV do
  local number = num(ARGV[3]) + i - 3
  if number > have then
    call('XADD', k, int(number) .. '-0', 'c', ARGV[i])
    added = added + 1
  end
end
if call('EXISTS', job_key(ARGV[2])) == 0 then call('EXPIRE', k, 600) end
return added
