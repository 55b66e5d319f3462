--- First thing on every connection: is this the server the shard was last used on?
-- Needs    base
--
-- KEYS[1]  P gate    hash
-- ARGV[1]  P         ARGV[2]  run id of the server      ARGV[3]  lease, ms
-- Reads    P workers
-- Writes   P told
-- Returns  born, '' when the shard has none
-- Repeat   no change
-- Cost     O(1)
local g = call('HMGET', G, 'run', 'born')
local lease = num(ARGV[3])
if not g[1] then
  call('HSET', G, 'run', ARGV[2])
elseif g[1] ~= ARGV[2] then
  local fresh = call('ZCOUNT', P .. 'workers', int(now - lease), '+inf')
  call('DEL', P .. 'told')
  call('HSET', G, 'run', ARGV[2], 'hold_at', int(now), 'hold_until', int(now + lease),
       'calm_until', int(now + 2 * lease), 'hold_strict', fresh == 0 and '1' or '0')
end
return g[2] or ''
