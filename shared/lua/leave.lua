--- A worker's last act: put back what it holds, delete its consumer and its signs.
-- Needs    strays, release
--
-- KEYS[1]  P gate    declares the shard's slot
-- ARGV[1]  P         ARGV[2]  worker
-- Writes   P ready, P workers, P slots, P told
-- Returns  '1' when nothing of it is left, else '0': call again
-- Repeat   no change
-- Cost     O(256)
for _, p in ipairs(call('XPENDING', P .. 'ready', 'workers', '-', '+', 256, ARGV[2])) do requeue(p[1], 0) end
local gone = forget(ARGV[2])
release(16)
return gone and '1' or '0'
