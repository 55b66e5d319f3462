--- Tell a shard of a sender's settings and state; a version it has seen is ignored.
-- Needs    release
--
-- KEYS[1]  P gate    declares the shard's slot
-- ARGV[1]  P         ARGV[2]  sender      ARGV[3]  version     ARGV[4]  rate_max    ARGV[5]  burst
-- ARGV[6]  paused    ARGV[7]  why         ARGV[8]  blocked_until, ms
-- Writes   P sender:<id>, P turns, P timers, P ready
-- Returns  '1' when taken, '0' when the version was seen
-- Repeat   no change
-- Cost     O(1)
local k, id = sender_key(ARGV[2]), ARGV[2]
local h = call('HMGET', k, 'version', 'rate_max', 'blocked_until', 'why')
if h[2] and num(h[1]) >= num(ARGV[3]) and num(h[2]) == num(ARGV[4]) then return '0' end
call('HSET', k, 'version', ARGV[3], 'rate_max', ARGV[4], 'burst', ARGV[5], 'paused', ARGV[6])
if h[2] and num(h[2]) ~= num(ARGV[4]) then call('HSET', k, 'ceiling', '0', 'bucket_ms', '0') end
if ARGV[6] == '1' or num(ARGV[8]) > now or h[4] ~= 'throttled' or num(h[3]) <= now then
  call('HSET', k, 'why', ARGV[7], 'blocked_until', ARGV[8])
end
if ARGV[6] == '1' or num(ARGV[8]) > now then
  call('ZREM', P .. 'turns', id)
  if ARGV[6] ~= '1' then wake_at('s:' .. id, num(ARGV[8])) end
else
  join(id)
  release(16)
end
return '1'
