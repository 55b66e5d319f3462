--- Raise the position up to which a job may be released; PostgreSQL has committed it already.
-- Needs    release
--
-- KEYS[1]  P gate    declares the shard's slot
-- ARGV[1]  P         ARGV[2]  job id      ARGV[3]  mark
-- Writes   P job:<id>, P low, P sender:<id>:jobs, P turns, P ready
-- Returns  the mark in force
-- Repeat   no change
-- Cost     O(1)
local k = job_key(ARGV[2])
local h = call('HMGET', k, 'reserved', 'cursor', 'step', 'recipients')
if not h[1] then call('SREM', P .. 'low', ARGV[2]); return '0' end
local mark = math.max(num(h[1]), num(ARGV[3]))
call('HSET', k, 'reserved', int(mark))
if mark >= num(h[4]) or num(h[2]) < mark - num(h[3]) / 2 then call('SREM', P .. 'low', ARGV[2]) end
offer(ARGV[2])
release(16)
return int(mark)
