--- Give a place in the sliding logs back: a refused submission does not count.
--
-- KEYS[n]  {v}:quota:<who>   zset
-- ARGV[1]  member
-- Returns  how many places were given back
-- Repeat   none left
-- Cost     O(log N) a key
local back = 0
for _, key in ipairs(KEYS) do back = back + redis.call('ZREM', key, ARGV[1]) end
return back
