-- Cursor, pattern: the next cursor.
local page = redis.call('SCAN', ARGV[1], 'MATCH', ARGV[2], 'COUNT', 500)
for _, key in ipairs(page[2]) do redis.call('DEL', key) end
return page[1]
