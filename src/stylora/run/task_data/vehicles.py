"""The 13 source types of MOVES and what people call them, in Chinese and English: the first name of each is the standard one.

MOVES is the emission model of the US EPA; the types are those of its report "Population and Activity of Onroad Vehicles in MOVES".
What a name means where usage differs is decided here once: pick-ups, SUVs and people carriers are Passenger Trucks, small vans with goods
Light Commercial Trucks; a rigid lorry or a tractor with trailer is short-haul unless the name says that it drives far.
No name stands under two types, also none that differs in case, blanks or punctuation alone; a test says so.
"""

from __future__ import annotations

VEHICLES: dict[str, tuple[str, ...]] = {
    "Motorcycle": (
        "Motorcycle", "摩托车", "摩托", "二轮摩托车", "两轮摩托", "三轮摩托车", "踏板车", "踏板摩托", "机车", "电摩", "轻便摩托车",
        "跨骑车", "弯梁车", "越野摩托", "巡航摩托", "警用摩托", "motorbike", "scooter", "moped", "two-wheeler", "dirt bike", "sport bike",
        "street bike", "motor scooter", "mtc", "motuoche", "侉子", "太子摩托", "三蹦子摩托",
    ),
    "Passenger Car": (
        "Passenger Car", "小汽车", "轿车", "私家车", "家用轿车", "小轿车", "小客车", "家庭用车", "乘用轿车", "三厢车", "两厢车", "掀背车",
        "出租车", "的士", "网约车", "跑车", "敞篷车", "旅行轿车", "微型轿车", "紧凑型轿车", "公务轿车", "sedan", "hatchback", "saloon",
        "coupe", "convertible", "station wagon", "taxi", "cab", "automobile", "compact car", "subcompact", "family car", "private car",
        "jiaoche", "roadster", "五座小车", "代步车",
    ),
    "Passenger Truck": (
        "Passenger Truck", "皮卡", "皮卡车", "SUV", "运动型多用途车", "越野车", "越野吉普", "吉普车", "城市越野", "MPV", "多用途乘用车",
        "商务车", "七座商务车", "家用皮卡", "双排座皮卡", "硬派越野", "保姆车", "客用轻卡", "载客卡车", "pickup", "pickup truck",
        "crew cab pickup", "minivan", "people carrier", "sport utility vehicle", "off-roader", "4x4 wagon", "crossover", "jeep",
        "passenger van", "pika", "全尺寸皮卡", "四驱越野车",
    ),
    "Light Commercial Truck": (
        "Light Commercial Truck", "轻型商用货车", "轻型货车", "轻卡", "微型货车", "微卡", "小货车", "面包车", "金杯车", "封闭货车",
        "轻型厢式货车", "快递车", "送货面包", "小型厢货", "配送货车", "城市配送车", "蓝牌轻卡", "依维柯货车", "微面", "cargo van",
        "delivery van", "panel van", "light goods vehicle", "LCV", "small commercial van", "courier van", "light duty truck", "work van",
        "utility van", "qingka", "mini truck", "工程面包车", "冷藏面包车",
    ),
    "Intercity Bus": (
        "Intercity Bus", "长途客车", "城际大巴", "长途大巴", "城际客车", "省际客车", "跨省大巴", "旅游大巴", "旅游客车", "班线客车",
        "高速客车", "长途班车", "卧铺客车", "大巴", "豪华大巴", "客运班车", "机场大巴", "公路客车", "包车客车", "coach", "motorcoach",
        "tour bus", "charter bus", "long-distance bus", "express coach", "overland bus", "sleeper bus", "interstate bus", "changtu keche",
        "intercity coach", "Greyhound bus", "客运大巴",
    ),
    "Transit Bus": (
        "Transit Bus", "公交车", "公共汽车", "公交", "公交大巴", "城市公交", "巴士", "市内公交车", "快速公交", "BRT车辆", "电动公交",
        "双层巴士", "铰接公交车", "社区巴士", "微公交", "接驳公交", "无轨电车", "地铁接驳车", "城市客车", "city bus", "public bus",
        "urban bus", "transit coach bus", "articulated bus", "double-decker", "trolleybus", "shuttle transit", "commuter bus",
        "municipal bus", "gongjiaoche", "BRT bus", "metrobus", "线路公交",
    ),
    "School Bus": (
        "School Bus", "校车", "学生校车", "学校班车", "幼儿园校车", "小学生校车", "中学校车", "学生接送车", "学生专用车", "接送学生的车",
        "黄色校车", "上学班车", "校园班车", "专用校车", "幼儿接送车", "大学校车", "通学车", "学童巴士", "school coach", "pupil bus",
        "student bus", "yellow school bus", "schoolbus type A", "kindergarten bus", "school shuttle", "children transport bus",
        "xuesheng xiaoche", "school run bus", "campus bus", "学生巴士", "student transport vehicle",
    ),
    "Refuse Truck": (
        "Refuse Truck", "垃圾车", "垃圾清运车", "压缩式垃圾车", "环卫车", "环卫垃圾车", "勾臂垃圾车", "垃圾转运车", "餐厨垃圾车",
        "摆臂垃圾车", "自装卸垃圾车", "挂桶垃圾车", "生活垃圾运输车", "垃圾压缩车", "清洁车", "废物收集车", "垃圾收集车", "桶装垃圾运输车",
        "garbage truck", "trash truck", "rubbish truck", "waste collection vehicle", "dustcart", "bin lorry", "refuse collector",
        "dustbin lorry", "sanitation truck", "waste hauler", "lajiche", "recycling truck", "rear loader refuse", "compactor truck",
    ),
    "Single Unit Short-haul Truck": (
        "Single Unit Short-haul Truck", "短途单体货车", "单体短途卡车", "短途货车", "中型货车", "中卡", "自卸车", "渣土车", "泥头车",
        "翻斗车", "水泥搅拌车", "混凝土搅拌车", "洒水车", "市内厢式货车", "城区货车", "短途厢货", "油罐车短途", "随车吊", "四轮载货车",
        "平板货车短驳", "本地配送卡车", "dump truck", "tipper", "cement mixer truck", "box truck", "straight truck local",
        "local delivery truck", "rigid truck short haul", "concrete truck", "flatbed truck local", "water truck", "zixieche", "拉土车",
        "short-haul rigid lorry",
    ),
    "Single Unit Long-haul Truck": (
        "Single Unit Long-haul Truck", "长途单体货车", "单体长途卡车", "长途厢式货车", "长途整体式货车", "长途载货车", "跨省厢式货车",
        "长途厢货", "长途冷藏单车", "跨省单体卡车", "远途单体货车", "高栏长途货车", "干线单体货车", "省际载货单车", "长途高栏车",
        "长途前四后八", "长途九米六", "long-haul straight truck", "long distance box truck", "long haul rigid truck",
        "long-distance rigid lorry", "interstate straight truck", "over-the-road box truck", "single unit long haul",
        "long-range single unit lorry", "SU long haul", "long haul van body truck", "changtu danti huoche", "跨省平板单车",
        "远途厢式载货车",
    ),
    "Motor Home": (
        "Motor Home", "房车", "旅居车", "自行式房车", "露营车", "野营车", "宿营车", "旅行房车", "B型房车", "C型房车", "A型房车", "额头房车",
        "床车", "家庭房车", "移动房屋车", "旅居房车", "休闲露营车", "motorhome class C", "RV", "recreational vehicle", "camper",
        "campervan", "class A RV", "motor caravan", "self-propelled caravan", "house car", "winnebago", "fangche", "touring van conversion",
        "大型旅居车", "露营房车",
    ),
    "Combination Short-haul Truck": (
        "Combination Short-haul Truck", "短途半挂车", "短途组合货车", "短途牵引车", "短途拖挂车", "短途挂车", "港口集卡", "港区拖车",
        "短驳集卡", "短途汽车列车", "倒短半挂", "市郊半挂车", "本地半挂", "短倒拖头", "码头牵引车", "短途集装箱车", "短途铰接列车",
        "drayage truck", "day cab tractor", "short-haul semi", "local semi-trailer", "short haul tractor trailer", "port container truck",
        "regional day cab", "yard tractor trailer", "short-haul combination", "local articulated lorry", "duantu bangua", "城际短途拖头",
        "short distance artic", "combination truck local", "短驳半挂",
    ),
    "Combination Long-haul Truck": (
        "Combination Long-haul Truck", "长途半挂车", "长途组合货车", "长途牵引车", "长途拖挂车", "长途挂车", "干线牵引车", "跨省半挂",
        "十八轮大卡车", "长途集卡", "长途汽车列车", "干线物流半挂", "重型半挂长途", "远途拖头", "高速半挂货车", "长途冷藏半挂",
        "省际半挂列车", "长途铰接列车", "18-wheeler", "long-haul semi", "sleeper cab tractor", "long haul tractor trailer",
        "over-the-road semi", "OTR truck", "long-distance articulated lorry", "big rig", "linehaul tractor", "long-haul combination",
        "interstate semi-trailer", "changtu bangua", "cross-country rig", "干线大挂",
    ),
}  # fmt: skip
