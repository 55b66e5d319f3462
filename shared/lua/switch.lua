--- Switch sending off for a while in the name of one process, or for good, or on again.
-- Needs    release
--
-- KEYS[1]  P gate    hash: off
-- ARGV[1]  P         ARGV[2]  process, or '' for everybody      ARGV[3]  ms; 0 = on again
-- Writes   P off
-- Returns  '1' when sending is off now
-- Repeat   no change but times
-- Cost     O(processes)
if ARGV[2] == '' then
  if num(ARGV[3]) > 0 then call('HSET', G, 'off', '1') else call('HDEL', G, 'off') end
elseif num(ARGV[3]) > 0 then
  call('ZADD', P .. 'off', int(now + num(ARGV[3])), ARGV[2])
else
  call('ZREM', P .. 'off', ARGV[2])
end
call('ZREMRANGEBYSCORE', P .. 'off', '-inf', '(' .. int(now))
if not is_off(call('HGET', G, 'off')) then release(16) end
return is_off(call('HGET', G, 'off')) and '1' or '0'
